"""Trainer classes and nothing else: ``nnUNet_extTrainer`` names this folder, and nnU-Net imports all of it."""
