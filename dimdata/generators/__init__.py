"""Generators: sources of labelled images, whatever lies behind them."""
