"""The images that `images.build` makes."""
