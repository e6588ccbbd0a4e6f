"""What OpenAI clients see."""
