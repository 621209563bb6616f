"""What happens to a network's weights and activations between training and lowering."""
