# Images for Dataflow, and for any engine whose workers are containers. docs/dataflow.md says how they are made and used:
#   worker    Beam's own image, with worldloom and all that its steps need: nothing is installed when a worker starts
#   launcher  the same, started by Google's launcher of flex templates: it submits whole builds
# The context is a commit:  git archive HEAD | docker build --target worker -t IMAGE -
ARG BEAM=2.77.0
ARG PYTHON=3.11

FROM apache/beam_python${PYTHON}_sdk:${BEAM} AS worker
ARG EXTRAS=build,vision,gcs
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE py.typed *.py /src/
COPY tokenizers /src/tokenizers
COPY packing /src/packing
COPY pipelines /src/pipelines
COPY training /src/training
COPY recipes /src/recipes
# The very versions that the tests ran with: rows depend on them, and a submitter with others is refused.
RUN pip install --no-cache-dir -c /src/constraints.txt "/src[${EXTRAS}]"
# No virtual environment at every start; and NVIDIA's driver, which Dataflow puts beside the container, is found.
ENV RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1 LD_LIBRARY_PATH=/usr/local/nvidia/lib64
# The entry point is Beam's: /opt/apache/beam/boot.

FROM gcr.io/dataflow-templates-base/python311-template-launcher-base:latest AS google

FROM worker AS launcher
COPY --from=google /opt/google/dataflow/python_template_launcher /opt/google/dataflow/python_template_launcher
RUN echo 'from worldloom.pipelines.launched import main; main()' >/opt/worldloom_launch.py
ENV FLEX_TEMPLATE_PYTHON_PY_FILE=/opt/worldloom_launch.py
ENTRYPOINT ["/opt/google/dataflow/python_template_launcher"]
