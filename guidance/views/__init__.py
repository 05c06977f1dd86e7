"""Views: ways to look at a picture twice, by one protocol and one registry."""
