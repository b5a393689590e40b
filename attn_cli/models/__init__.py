"""One plain `nn.Module` file a paper."""
