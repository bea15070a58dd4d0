package process

// Parse lets a fuzz test read netlink answers.
func Parse(b []byte) error {
	_, _, err := parse(b)
	return err
}
