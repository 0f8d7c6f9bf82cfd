module example.com/greeter

go 1.22

require (
	github.com/go-chi/chi/v5 v5.1.0
	go.uber.org/zap v1.27.0
)

require go.uber.org/multierr v1.10.0 // indirect
