package main

import (
	"context"
	"math/rand/v2"
	"slices"
)

// minPairs is how often A and B are compared at least.
const minPairs = 20

// pairs are measurements of A and B, taken in turn: what disturbs the machine
// for a while disturbs both.
type pairs struct{ a, b []float64 }

// compare measures n pairs, each in the other order than the one before.
func compare(ctx context.Context, n int, a, b func() (float64, error)) (pairs, error) {
	var p pairs
	for i := range n {
		if err := ctx.Err(); err != nil {
			return p, err
		}
		first, second := a, b
		if i%2 == 1 {
			first, second = b, a
		}
		x, err := first()
		if err != nil {
			return p, err
		}
		y, err := second()
		if err != nil {
			return p, err
		}
		if i%2 == 1 {
			x, y = y, x
		}
		p.a, p.b = append(p.a, x), append(p.b, y)
	}
	return p, nil
}

// A ratio is that of two medians, with its interval of confidence.
type ratio struct{ value, low, high float64 }

// resamples is how many times the bootstrap draws.
const resamples = 10000

// ratio is median(a)/median(b) and, by the bootstrap over pairs, the interval
// in which it lies with 95 %.
func (p pairs) ratio() ratio {
	// The same figures give the same interval.
	r := rand.New(rand.NewPCG(1, 2))
	a, b := make([]float64, len(p.a)), make([]float64, len(p.b))
	drawn := make([]float64, resamples)
	for i := range drawn {
		for j := range a {
			k := r.IntN(len(p.a))
			a[j], b[j] = p.a[k], p.b[k]
		}
		drawn[i] = median(a) / median(b)
	}
	slices.Sort(drawn)
	return ratio{
		value: median(p.a) / median(p.b),
		low:   quantile(drawn, 0.025), high: quantile(drawn, 0.975),
	}
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return quantile(s, 0.5)
}

// quantile interpolates between the elements of a sorted list.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}
