"""Metrics of samples: functions of features and class probabilities.

features.py  images -> (features, probabilities), by a frozen network
frechet.py   the Frechet distance between two sets of features
modes.py     class shares, their entropy, confidence, classifier score
"""
