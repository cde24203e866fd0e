"""What a training set is kept in: folders, archives, tables; none of it goes unmentioned."""
