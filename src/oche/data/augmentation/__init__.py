"""Augmentation on the device, images and masks together."""
