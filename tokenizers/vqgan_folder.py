"""The files of a VQGAN's folder, as diffusers publishes them, and our own key in the config."""

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
RANGE = "_worldloom_pixel_range"  # what the network takes for black..white; diffusers passes over an underscore
