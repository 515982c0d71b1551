package vmc

// tailLines is how many lines tell a place in a log from every other one. They
// begin with the time, so even one would mostly do.
const tailLines = 64

// A tail is the end of what was printed.
type tail []string

func (t tail) add(line string) tail {
	if len(t) == tailLines {
		copy(t, t[1:])
		t[len(t)-1] = line
		return t
	}
	return append(t, line)
}

// A finder looks for a sequence of lines in a stream, as Knuth, Morris and
// Pratt do.
type finder struct {
	want    []string
	shorter []int // of each beginning of want: the longest one that ends it
	matched int
	fed     int
	after   int
}

// newFinder looks for want, not ending before the given number of lines.
func newFinder(want []string, after int) *finder {
	f := &finder{want: append([]string(nil), want...), after: after, shorter: make([]int, len(want)+1)}
	for i, k := 1, 0; i < len(want); i++ {
		for k > 0 && want[i] != want[k] {
			k = f.shorter[k]
		}
		if want[i] == want[k] {
			k++
		}
		f.shorter[i+1] = k
	}
	return f
}

// feed takes the next line and says whether the sequence ends with it.
func (f *finder) feed(line string) bool {
	f.fed++
	if f.matched == len(f.want) {
		f.matched = f.shorter[f.matched]
	}
	for f.matched > 0 && f.want[f.matched] != line {
		f.matched = f.shorter[f.matched]
	}
	if f.want[f.matched] == line {
		f.matched++
	}
	return f.matched == len(f.want) && f.fed >= f.after
}
