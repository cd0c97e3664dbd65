"""Spectrum: are task gradients near a trained point of low rank, and do they share a space?"""
