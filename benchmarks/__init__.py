"""Measurements beside what others use; results/ holds what was measured, with machine and versions."""
