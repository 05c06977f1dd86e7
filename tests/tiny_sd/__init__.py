"""The demo model: a tiny text-to-image model of the Stable-Diffusion-1 family and the world it was trained on."""
