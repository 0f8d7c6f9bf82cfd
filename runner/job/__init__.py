"""One job from payload to outcome."""
