//go:build incus

package tremplin_test

import "testing"

func TestFirst(t *testing.T) {
	c, h, _ := start(t, nil)
	create(t, c, h, "penguin")
}
