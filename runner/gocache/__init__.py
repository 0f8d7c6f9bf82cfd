"""Stores of the Go tool that jobs share: build cache, modules, installed programs."""
