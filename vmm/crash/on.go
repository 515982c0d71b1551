//go:build crashpoints

package crash

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

var (
	armed, count = parse(os.Getenv(Env))
	reached      atomic.Int64
)

func parse(s string) (Point, int64) {
	name, n, found := strings.Cut(s, "#")
	if !found {
		return Point(name), 1
	}
	times, err := strconv.ParseInt(n, 10, 32)
	if err != nil || times < 1 {
		panic(Env + "=" + s + ": what follows # is no count")
	}
	return Point(name), times
}

// At kills the process, as nothing else could be taken for, when the point is
// the one that the environment names.
func At(p Point) {
	if p == armed && reached.Add(1) == count {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
