"""Networks with real ImageNet weights, and a photograph: fetched once at test time, never committed."""
