"""Work on sharpaudit itself: rivals of the screen that lost, and the training of the lab. No part of the wheel."""
