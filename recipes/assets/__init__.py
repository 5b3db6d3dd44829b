"""What builds the assets that mtl ships, and the small networks that recipes pretrain for themselves."""
