"""The cluster as a node knows it: a table for each kind of object, with the indices that planners ask for."""
