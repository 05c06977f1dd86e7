"""The maths of attention maps and of words in a prompt: plain torch, nothing of the host."""
