"""What an operator looks at: metrics, health, service notifications."""
