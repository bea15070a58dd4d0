package audit

// Join makes one record of a begin and its end: the begin's facts and time, the
// end's place in the sequence and everything that it adds.
func Join(begin, end Record) Record { return joinLines(begin, end) }
