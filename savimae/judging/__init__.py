"""What models are worth: reconstructions, features, probes, pictures, comparisons."""
