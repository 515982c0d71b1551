package vshd

import "time"

func WithEtc(dir string) Option { return func(o *options) { o.etc = dir } }

func WithSetupTimeout(d time.Duration) Option { return func(o *options) { o.setupTimeout = d } }

func WithKillGrace(d time.Duration) Option { return func(o *options) { o.killGrace = d } }

func WithInputLimit(n int) Option { return func(o *options) { o.inputLimit = n } }

// WithPatience makes the server wait for what was left in the background.
func WithPatience(d time.Duration) Option {
	return func(o *options) { o.drain.silence, o.drain.total = d, d }
}
