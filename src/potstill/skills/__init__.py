"""What skills are made of: checkers of answers, traces, labels and their agreement, tools that are really executed."""
