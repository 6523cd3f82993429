"""Monitoring: does the input drift, and which of two versions do people prefer?"""
