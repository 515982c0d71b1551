package tap

// Block holds the turn until the returned function is called.
func (n *Networks) Block() func() {
	n.turn <- struct{}{}
	return func() { <-n.turn }
}
