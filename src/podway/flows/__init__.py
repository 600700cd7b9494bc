"""Records of flows: what an engine told, with names, as history on a node, and asked for (docs/flows.md).

reasons       why packets are dropped, in words
record        what is known of one event: both ends, verdict, rules, counters
tally         what of them is counted for metrics
learn         what has to be known of events as they come
block         many events in columns, with the names that they had then; to bytes and back
store         the blocks of a node: written as events come, bounded, newest kept
query         which records are wanted, found in blocks; sums of them

Only `store` does input and output.
"""
