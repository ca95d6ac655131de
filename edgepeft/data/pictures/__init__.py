"""Images: files are decoded, resized, cropped and normalized as a model directory's own processor does."""
