"""SD 1.5, SDXL and the SD VAE at full size with random weights, as the host's own objects: for speed and memory."""
