"""Tables, data and single runs of maml.py and meta_transfer.py."""
