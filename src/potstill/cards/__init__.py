"""The cards of what leaves the house: data sets and models."""
