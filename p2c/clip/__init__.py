"""CLIP through open_clip: loading, and running its frozen towers with prompts. Only this folder knows its insides."""
