"""Few-shot runs from the first setting to the last picture: what ``mtl train`` and the few-shot recipes share."""
