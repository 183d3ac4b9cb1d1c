"""T5X-lite: text-to-text transformers on current JAX."""
