package main

import "testing"

func TestTallyRate(t *testing.T) {
	t.Parallel()
	var c tally
	c.add(2)
	if _, err := c.rate(); err == nil {
		t.Error("a rate from one addition, by which the clock starts")
	}
	c.add(2)
	if c.Units != 2 {
		t.Errorf("timed %d of two additions, want 2", c.Units)
	}
	for range clockEvery - 2 {
		c.add(2)
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
