"""The maths of guidance on latents, images and noise: plain torch and kornia, nothing of the host."""
