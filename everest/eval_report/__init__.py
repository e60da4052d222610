"""What a test has to show: who is taken for whom, where a classifier is sure and wrong, what tokens cost."""
