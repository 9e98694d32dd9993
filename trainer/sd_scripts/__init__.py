"""kohya's sd-scripts as a second engine: the user's own checkout, run as it is with its own Python, on our settings."""
