"""Found networks in plain PyTorch: the classes that `network.py` beside an exported network is written from."""
