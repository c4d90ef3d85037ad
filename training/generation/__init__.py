"""Generation, from ids to ids: a cache that may be spread over devices, and sampling as LWM does it."""
