package main

import "testing"

func TestTallyRate(t *testing.T) {
	t.Parallel()
	var c tally
	for range clockEvery {
		c.add(2)
	}
	if _, err := c.rate(); err == nil {
		t.Errorf("a rate from %d additions, before the clock was read again", clockEvery)
	}
	c.add(2)
	c.add(2) // after the clock stood
	if c.Units != 2*clockEvery || c.Total != 2*(clockEvery+2) {
		t.Errorf("timed %d of %d, want %d of %d", c.Units, c.Total, 2*clockEvery, 2*(clockEvery+2))
	}
	if r, err := c.rate(); err != nil || r <= 0 {
		t.Errorf("rate %v, %v", r, err)
	}
}
