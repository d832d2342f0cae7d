"""Families, loading, data, artefacts and errors: what every other room stands on."""
