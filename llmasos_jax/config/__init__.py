"""Configuration: `ml_collections` outside, frozen dataclasses inside."""
