"""Where two models part: by layer, by weight, by option."""
