package main

import (
	"context"
	"errors"
	"math"
	"slices"
	"testing"
)

func TestMedian(t *testing.T) {
	for want, v := range map[float64][]float64{
		3:   {5, 3, 1},
		2.5: {4, 1, 3, 2},
		7:   {7},
	} {
		if got := median(v); got != want {
			t.Errorf("median of %v is %v, want %v", v, got, want)
		}
	}
}

// The interval holds the ratio, is as narrow as the figures are steady, and
// pairs stay pairs: a disturbance of both at once does not widen it.
func TestRatio(t *testing.T) {
	steady, drifting := pairs{}, pairs{}
	for i := range 25 {
		f := float64(i)
		steady.a, steady.b = append(steady.a, 30+math.Mod(f, 3)), append(steady.b, 10+math.Mod(f, 2)/10)
		drifting.a, drifting.b = append(drifting.a, 2*(10+f)), append(drifting.b, 10+f)
	}
	r := steady.ratio()
	if r.value < 3 || r.value > 3.1 || r.low > r.value || r.high < r.value || r.low < 2.9 || r.high > 3.3 {
		t.Errorf("%+v", r)
	}
	if r := drifting.ratio(); r.value != 2 || r.low != 2 || r.high != 2 {
		t.Errorf("drifting: %+v", r)
	}
	if again := steady.ratio(); again != r {
		t.Errorf("%+v, then %+v", r, again)
	}
}

// A and B take turns at going first, and what each measured stays its own.
func TestCompareAlternates(t *testing.T) {
	var order []byte
	measure := func(name byte, v float64) func() (float64, error) {
		return func() (float64, error) {
			order = append(order, name)
			return v, nil
		}
	}
	p, err := compare(t.Context(), 3, measure('a', 1), measure('b', 2))
	if err != nil || string(order) != "abbaab" || !slices.Equal(p.a, []float64{1, 1, 1}) || !slices.Equal(p.b, []float64{2, 2, 2}) {
		t.Errorf("order %s, %+v, %v", order, p, err)
	}
}

func TestCompareEndsWithFailureOrContext(t *testing.T) {
	broken := errors.New("broken")
	if _, err := compare(t.Context(), 3, func() (float64, error) { return 0, broken }, nil); !errors.Is(err, broken) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	f := func() (float64, error) {
		n++
		cancel()
		return 1, nil
	}
	if _, err := compare(ctx, 3, f, f); !errors.Is(err, context.Canceled) || n != 2 {
		t.Errorf("%d measurements, %v", n, err)
	}
}
