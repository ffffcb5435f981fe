"""Scaffolding: the files of a new source, and of a new use case, for their author to edit."""
