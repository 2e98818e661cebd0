"""VQ tokenizers: pictures to codes and back (VQ-16, VQ-8, and smaller ones of the same class)."""
